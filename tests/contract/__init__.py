"""What every memory server must do, whoever wrote it: one suite for all of them."""
