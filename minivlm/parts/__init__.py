"""What the models are put together from: layers, masks, positions, the decoder, generation,
training.
"""
