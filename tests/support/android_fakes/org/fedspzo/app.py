"""The app's own native method."""

from java.nio import ByteBuffer


class Buffers:
    @staticmethod
    def over(address: int, size: int) -> ByteBuffer:
        assert isinstance(address, int)
        assert isinstance(size, int)
        return ByteBuffer(address, size)
