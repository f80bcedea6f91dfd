"""Mathematics: a Spec becomes a Decoder, a ribbon of tokens hidden states; knows no file, device or training."""
