import os
import subprocess
import sys

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # what import finds where torch is not installed
from nearpeak.errors import NearpeakError
try:
    import nearpeak.compress
except NearpeakError as error:
    print(error)
"""


def test_without_torch_the_room_names_what_to_install():
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "nearpeak.compress needs torch: pip install nearpeak[torch]"
