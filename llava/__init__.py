"""LLaVA: a checkpoint and questions in, answers out."""
