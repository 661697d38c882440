"""Devices join by an invitation for many: invitations, requests and their tokens, and who was let in."""
