"""Choices, without tensors."""
