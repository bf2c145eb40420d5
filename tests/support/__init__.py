"""What the tests share: leak checks, a virtual clock, misbehaving peers."""
