"""minivlm: vision-language models from scratch, one concept a module, one module a notebook."""
