"""tau_theta(y): what turns an entry of a batch (text, class, image) into Conditioning; one file each."""
