"""The Spaces: one folder each, ready to be pushed to the Hub; installed as `dinov3_hf.spaces`.

Unlike its neighbours it does not refuse to be imported as `spaces`: from this repository's root, other packages that look
for ZeroGPU's package of that name find this one, and go on without.
"""
