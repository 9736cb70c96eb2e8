"""Bundle to answer: never imports torch or the compiler."""
