"""Small wrong versions of the library, and the command that shows that the tests catch each one."""
