"""All of DeepSpeed: what it is told, its engines, gradients, loss scale and overflows."""
