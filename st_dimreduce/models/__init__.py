"""Models: loading them, encoding with them, and heads behind them."""
