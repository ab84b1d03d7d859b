"""Fine-tuning on labels with `transformers.Trainer`: a head alone, adapters, or every weight; one file a task."""
