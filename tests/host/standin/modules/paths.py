models_path = ""  # a test says where
