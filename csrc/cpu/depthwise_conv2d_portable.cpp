// The portable bodies of depthwise_conv2d.h are compiled from here.
