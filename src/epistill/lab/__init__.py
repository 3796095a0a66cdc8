"""The laptop world's model: how it is built, pretrained and shipped. See `docs/lab.md`."""
