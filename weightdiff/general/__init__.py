"""One adapter for every kind of finetune: many families, recipes drawn at random, and questions of many sorts."""
