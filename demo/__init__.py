"""The demo model, its adapter and recorded speech: a small Voxtral that this package ships."""
