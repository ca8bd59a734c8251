"""Asking vision-language models: any OpenAI-compatible endpoint, answers checked, costs capped, everything logged."""
