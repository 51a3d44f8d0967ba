# Without the feature this changes nothing, signatures included.
require ${@bb.utils.contains('DISTRO_FEATURES', 'sysflow', 'sysflow-kernel.inc', '', d)}
