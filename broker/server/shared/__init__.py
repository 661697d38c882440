"""A job whose state servers on several machines share: one of them has it, the others stand by."""
