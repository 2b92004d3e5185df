"""What Flower needs to show jobs as what they are; imported only by ``pagefleet flower``."""
