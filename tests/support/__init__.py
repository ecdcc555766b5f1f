"""What the tests of GPU code run on where there is no GPU."""
