"""Losses over the softmax of logits: what cross_entropy and robust_losses share."""
