# Only annotations name it.


class AutoConfig: ...
