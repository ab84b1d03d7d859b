"""The networks, their configurations and processors, flat: the Hub's remote code ships these files side by side."""
