"""What layers compute with: `base` says it in plain torch, the folders beside it bring kernels of devices."""
