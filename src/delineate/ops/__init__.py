"""Operations on regions of interest, boxes and masks: each has a plain PyTorch reference and, on the CPU, a native kernel."""
