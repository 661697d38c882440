"""Demonstration: private federated fine-tuning of a sentence encoder on assistant intents."""
