"""OpenAI's API over our jobs: images, chat and models in the shapes that its clients send and read.

`docs/openai.md` says field by field what is taken and what is answered. Nothing is ignored in silence: a field that
would change nothing is refused by name, unless OpenAI's clients send it without being asked to.
"""
