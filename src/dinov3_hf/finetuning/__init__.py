"""Fine-tuning on labels with `transformers.Trainer`: a head alone, adapters, or all weights; one file per task."""
