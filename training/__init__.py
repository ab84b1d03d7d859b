"""Training of DINOv3: pretraining objectives, data preparation and the loop."""

if __name__ == "training":
    # From the repository root a plain `import training` would find this folder and build a second copy of every module.
    raise ImportError("import dinov3_hf.training instead of training (launch with python -m dinov3_hf.cli pretrain)")
