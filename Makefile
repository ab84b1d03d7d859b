PYTHON ?= .venv/bin/python

.PHONY: style quality test slow wheel

style:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

quality:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) tools/check_language.py
	$(PYTHON) tools/check_types.py

test:
	$(PYTHON) -m pytest

slow:
	$(PYTHON) -m pytest -m slow

wheel:
	$(PYTHON) -m build
