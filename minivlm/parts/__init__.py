"""What every model is made of: layers, masks, positions, decoder, generation, training."""
