"""Models as they are: tensors in, tensors out. The way in is ``fanlight.InferenceSession``."""
