"""The files a job names, read and checked, and turned into what each window is asked for."""
