"""Pictures ranked, compared and scored by a vision-language model that does not know whose they are."""
