"""The models behind the layers. Callbacks train them, layers use them, and they ride in the policy's zip."""
