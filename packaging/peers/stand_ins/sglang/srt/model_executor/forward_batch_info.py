# Only annotations name it.


class ForwardBatch: ...
