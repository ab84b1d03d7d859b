"""What a source is taken for: the listing of a folder, its layout, its splits, and the account of them."""
