"""How fast the training is, and what each idea for improvement does."""
