"""`python -m peftcls` is the command `peftcls`; under torchrun it is `-m peftcls train`."""

import sys

from peftcls.cli import main

sys.exit(main())
