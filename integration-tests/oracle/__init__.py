"""What transformers and PEFT say in fp32, kept so that exactness can be tested without running them."""
