"""Training of DINOv3: objectives, data preparation and the training loop."""

if __name__ == "training":
    # From the repository root, `import training` would find this folder and load every module a second time.
    raise ImportError("import dinov3_hf.training instead of training (launch with python -m dinov3_hf.cli pretrain)")
