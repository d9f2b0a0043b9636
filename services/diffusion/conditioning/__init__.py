"""Text becomes embeddings: stock's 77 tokens, or LLMGA's long prompts with weights.

`weights` reads the weight syntax, `prompts` makes token ids of text, `encoder` runs CLIP over them. The first
two are pure; only the encoder touches the device.
"""
