"""Text alignment: a text tower trained from scratch to match a frozen backbone (dino.txt)."""

if __name__ == "text_alignment":
    # From the repository root, a plain import would find this folder and load every module a second time.
    raise ImportError(
        "import dinov3_hf.text_alignment instead of text_alignment (launch with python -m dinov3_hf.cli align)"
    )
