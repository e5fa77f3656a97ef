"""The pages of the console and their actions: what they ask of the store, and the document they show."""
