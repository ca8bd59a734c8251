"""Recipes from the configurations of other trainers, with a report of every option."""
