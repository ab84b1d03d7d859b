"""Demo pages, one folder per Hugging Face Space, ready to be uploaded to the Hub; installed as `dinov3_hf.spaces`.

The package `spaces` of ZeroGPU has the same name as this folder: in the root of this repository, packages that try to
import it get this one instead, and work without ZeroGPU. So, unlike the folders next to it, this one may be imported
under the name `spaces`.
"""
