"""What the tests share: the server under test, its clients, and models and adapters made for them."""
